"""Makes of the small model one that calls tools.

It was never trained for them, so it begins no call by itself. Here a call begins with one token
that means nothing else, and the engine is started with a bias towards it; from there on
llama-server's grammar writes the call with the model. A weaker bias towards the end lets there be
one call or a few. In shape it is Qwen's template, from which llama-server works out all else.
"""

from __future__ import annotations

_BEGINS = "\x01"
_BEGINS_TOKEN = 193
_END_TOKEN = 2

FLAGS = ("--logit-bias", f"{_BEGINS_TOKEN}+30", "--logit-bias", f"{_END_TOKEN}+24")
"""For an engine with this template."""

TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\nBEGINS{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\nIt says: ' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".replace("BEGINS", _BEGINS)
