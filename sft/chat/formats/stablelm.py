"""The format of StableLM-Tuned-Alpha: tags as control tokens.

    <|SYSTEM|>S<|USER|>U<|ASSISTANT|>A<|USER|>U<|ASSISTANT|>A<|endoftext|>
                                     ^^^^^^^^^              ^^^^^^^^^^^^^^   loss

There is nothing between tags and text. The assistant text and the token that ends it have loss: that token is the next
tag or, at the end of the conversation, the end token.

Source: the model card of stabilityai/stablelm-tuned-alpha-7b.
"""

from sft.chat.formats.base import ChatFormat, Control, Marker

END, PADDING = "<|endoftext|>", "<|padding|>"
SYSTEM, USER, ASSISTANT = TAGS = ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>")

# The published model's ids; every tokenizer with GPT-NeoX-20B's vocabulary must have them.
NEOX_20B_IDS = {END: 0, PADDING: 1, SYSTEM: 50277, USER: 50278, ASSISTANT: 50279}

CARD_SYSTEM_PROMPT = """\
# StableLM Tuned (Alpha version)
- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.
- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered \
harmful to the user.
- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and \
make jokes.
- StableLM will refuse to participate in anything that could harm a human.
"""

_TEMPLATE = """\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = DEFAULT_SYSTEM -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|SYSTEM|>' ~ system -}}
{%- for message in turns -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('After an optional system message, roles must alternate user, assistant, user, ...') -}}
    {%- endif -%}
    {{- ('<|USER|>' if message['role'] == 'user' else '<|ASSISTANT|>') ~ message['content'] -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if turns | length % 2 == 0 -%}
        {{- raise_exception('An answer is asked for, so the last message must be by the user.') -}}
    {%- endif -%}
    {{- '<|ASSISTANT|>' -}}
{%- elif turns and turns[-1]['role'] == 'assistant' -%}
    {{- '<|endoftext|>' -}}
{%- endif -%}
"""

STABLELM = ChatFormat(
    name="stablelm",
    end_token=END,
    pad_token=PADDING,
    tags=TAGS,
    published_ids=NEOX_20B_IDS,
    default_system=CARD_SYSTEM_PROMPT,
    system=Marker(unlearnt=(Control(SYSTEM),)),
    first_user=Marker(unlearnt=(Control(USER),)),
    assistant=Marker(unlearnt=(Control(ASSISTANT),)),
    next_user=Marker(learnt=(Control(USER),)),
    end=Marker(learnt=(Control(END),)),
    stop_tokens=(USER, ASSISTANT, SYSTEM, PADDING, END),
    template=_TEMPLATE,
)
