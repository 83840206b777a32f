"""A chat format as unlike StableLM's as can be: roles in plain text, only the end of an answer is a control token."""

from sft.chat.formats.base import ChatFormat, Control, Marker

END, PADDING = "<|endoftext|>", "<|padding|>"

PLAIN = ChatFormat(
    name="plain",
    end_token=END,
    pad_token=PADDING,
    tags=(),
    published_ids={END: 0, PADDING: 1},
    default_system="A talk.",
    system=Marker(),
    first_user=Marker(unlearnt=("\nASK:",)),
    assistant=Marker(unlearnt=("\nSAY:",)),
    next_user=Marker(learnt=(Control(END),), unlearnt=("\nASK:",)),
    end=Marker(learnt=(Control(END),)),
    turn_lead=" ",
    stop_tokens=(END, PADDING),
    stop_strings=("\nASK:",),
    template="""\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
    {%- set system, turns = DEFAULT_SYSTEM, messages -%}
{%- endif -%}
{{- system -}}
{%- for message in turns -%}
    {{- ('\\nASK: ' if message['role'] == 'user' else '\\nSAY: ') ~ message['content'] -}}
    {{- '<|endoftext|>' if message['role'] == 'assistant' -}}
{%- endfor -%}
{{- '\\nSAY:' if add_generation_prompt -}}
""",
)
