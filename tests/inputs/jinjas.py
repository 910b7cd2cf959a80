"""Jinja templates as checkpoints carry them, in the three known forms, and some that mean harm."""

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

_TURNS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- 'PICTURE\\n' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>BREAK' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def plain(picture: str = "<IMG_CONTEXT>", line_break: str = "\\n") -> str:
    """Form (a): no system text of its own."""
    return _TURNS.replace("PICTURE", picture).replace("BREAK", line_break)


def with_system(text: str, picture: str = "<image>", line_break: str = "\\n", start: str = "") -> str:
    """Form (b): the system text first, unless the caller brings one."""
    condition = "{%- if messages[0].role != 'system' %}"
    first = condition + "{{- '<|im_start|>system\\n" + text + "<|im_end|>BREAK' }}{%- endif %}\n"
    return start + first.replace("BREAK", line_break) + plain(picture, line_break)


# Form (c): a language model's own, with tools, which knows no parts.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".replace("SYSTEM", QWEN_SYSTEM)

HARMFUL = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for a in range(10 ** 9) %}a{% endfor %}",
    "a huge power": "{{ 10 ** 10 ** 10 }}",
    "a huge text": "{{ 'a' * 10 ** 11 }}",
    "a long text": "{{ 'a' * 10 ** 6 }}",
    "endless text": "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaa{% endfor %}{% endfor %}",
    "endless recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "deep nesting": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "attributes of classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes by filter": "{{ messages | map(attribute='__class__') | list | first }}",
    "attributes by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "globals of a function": "{{ raise_exception.__globals__['__builtins__'] }}",
    "another file": "{% include '/etc/passwd' %}",
    "changed messages": "{{ messages.append(1) }}",
}
