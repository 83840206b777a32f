import pytest
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from sft.errors import PeerError
from sft.train.distributed.errors import as_peer_errors

LOST = [
    RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:5] Connection closed by peer [10.0.0.7]:47. Good luck!"
    ),
    RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Read error [10.0.0.7]:4711: Connection reset by peer"),
    RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"),
    DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error"),
    DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cpu//0/1"),
    DistNetworkError("The client socket has timed out after 60000ms while trying to connect to (node1, 29500)."),
]
OWN = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ValueError("Connection closed by peer"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_lost_rank_is_a_peer_error_that_says_what_happened_and_where_to_look(error: RuntimeError) -> None:
    with pytest.raises(PeerError) as caught, as_peer_errors():
        raise error
    assert caught.value.exit_code == 71
    assert caught.value.__cause__ is error
    assert caught.value.what.startswith("lost another rank: ")
    assert caught.value.what.removeprefix("lost another rank: ") in str(error)
    assert len(caught.value.what) > 40
    assert not any(noise in caught.value.what for noise in (".cc", "Good luck"))
    assert "stacks/" in str(caught.value.hint)


@pytest.mark.parametrize("error", OWN, ids=str)
def test_own_error_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, as_peer_errors():
        raise error
    assert caught.value is error


def test_error_of_ours_on_the_way_out_stays_as_it_is() -> None:
    with pytest.raises(PeerError, match="rank 3 says"), as_peer_errors():
        raise PeerError("rank 3 says NCCL")
