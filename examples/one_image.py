"""One picture: a file, sent inside the request as a data URL.

tilewise serve                    # first, in another terminal
python examples/one_image.py
"""

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
parser.add_argument("--picture", type=Path, default=PICTURES / "reading_text.png")
parser.add_argument("--question", default="What is the word?")
options = parser.parse_args()

kind = mimetypes.guess_type(options.picture)[0] or "image/png"
url = f"data:{kind};base64,{base64.b64encode(options.picture.read_bytes()).decode()}"

client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": options.question},
            ],
        }
    ],
    temperature=0,
)
print(answer.choices[0].message.content)
