"""Two pictures in one question, numbered as the model cards do: <image> says where each one stands in the text.

tilewise serve                    # first, in another terminal
python examples/two_images.py
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
options = parser.parse_args()


def picture(name: str) -> dict:
    data = base64.b64encode((PICTURES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


question = "Image-1: <image>\nImage-2: <image>\nIn which picture are there more hearts?"
client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [picture("comparing_1.png"), picture("comparing_2.png"), {"type": "text", "text": question}],
        }
    ],
    temperature=0,
)
print(answer.choices[0].message.content)
