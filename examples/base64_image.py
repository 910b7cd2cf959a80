"""A picture that never was a file: drawn here, and sent as base64.

tilewise serve                    # first, in another terminal
python examples/base64_image.py --color blue
"""

import argparse
import base64
import io

from openai import OpenAI
from PIL import Image, ImageDraw

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
parser.add_argument("--color", default="green", help="of the circle that is drawn")
options = parser.parse_args()

drawing = Image.new("RGB", (112, 112), "white")
ImageDraw.Draw(drawing).ellipse((30, 30, 80, 80), fill=options.color)
file = io.BytesIO()
drawing.save(file, "PNG")
data = base64.b64encode(file.getvalue()).decode()

client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "What color is the circle?"},
            ],
        }
    ],
    temperature=0,
)
print(answer.choices[0].message.content)
