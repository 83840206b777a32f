"""PyTorch's random generators as text. No step uses them today, but a resume restores them."""

import torch


def random_state() -> dict[str, str]:
    """The state of every generator of this process, as hex digits by device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return {device: tensor.numpy().tobytes().hex() for device, tensor in state.items()}


def restore_random_state(state: dict[str, str]) -> None:
    """Set the generators to a state that `random_state` returned; devices that this machine lacks are skipped."""
    tensors = {device: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8) for device, text in state.items()}
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
