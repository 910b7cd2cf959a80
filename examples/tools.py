"""A tool that the model has to call: its arguments follow the schema, whatever model answers.

The demo model was not trained on tools, so the call is required here; with a larger model leave "auto" as it is.

tilewise serve --enable-auto-tool-choice --tool-call-parser hermes      # first, in another terminal
python examples/tools.py
"""

import argparse
import base64
import json
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
parser.add_argument("--tool-choice", choices=("required", "auto"), default="required")
options = parser.parse_args()


def move_camera(place: str) -> str:
    return f"The camera moves to the {place}."


tool = {
    "type": "function",
    "function": {
        "name": "move_camera",
        "description": "Move the camera to a place in the picture.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["left", "right", "top", "bottom"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
data = base64.b64encode((PICTURES / "follow_up.png").read_bytes()).decode()
client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "Where is the orange cross?"},
            ],
        }
    ],
    tools=[tool],
    tool_choice=options.tool_choice,
    parallel_tool_calls=False,
    temperature=0,
)
for call in answer.choices[0].message.tool_calls or ():
    print(f"{call.function.name}: {move_camera(**json.loads(call.function.arguments))}")
