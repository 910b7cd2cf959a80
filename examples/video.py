"""A video, sent as base64. Frames are chosen evenly; the request may say how many.

tilewise serve                    # first, in another terminal
python examples/video.py
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
parser.add_argument("--video", type=Path, default=Path(__file__).parent / "clip.mp4")
parser.add_argument("--question", default="In which picture are there more hearts?")
parser.add_argument("--num-frames", type=int, default=2)
options = parser.parse_args()

data = base64.b64encode(options.video.read_bytes()).decode()
client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}},
                {"type": "text", "text": options.question},
            ],
        }
    ],
    temperature=0,
    extra_body={"media_io_kwargs": {"video": {"num_frames": options.num_frames}}},
)
print(answer.choices[0].message.content)
