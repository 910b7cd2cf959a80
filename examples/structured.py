"""An answer as JSON that follows a schema: every token is chosen among those that the schema allows at its place.

tilewise serve                    # first, in another terminal
python examples/structured.py
"""

import argparse
import base64
import json
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
options = parser.parse_args()

schema = {
    "type": "object",
    "properties": {"word": {"enum": ["dog", "cat", "horse"]}},
    "required": ["word"],
    "additionalProperties": False,
}
data = base64.b64encode((PICTURES / "reading_text.png").read_bytes()).decode()
client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "What is the word?"},
            ],
        }
    ],
    temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "sign", "schema": schema, "strict": True}},
)
print(json.loads(answer.choices[0].message.content))
