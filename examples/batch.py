"""A file of requests to a file of answers. Runs as it is, with the demo model.

python examples/batch.py [--model MODEL] [--folder FOLDER]

Run again with the same folder, it has nothing left to ask. The same on the command line:

tilewise run-batch -i requests.jsonl -o answers.jsonl MODEL --allowed-local-media-path FOLDER-OF-PICTURES --keep-order
"""

import argparse
import json
import tempfile
from pathlib import Path

import tilewise

PICTURES = Path(__file__).resolve().parent.parent / "src" / "tilewise" / "demo" / "pictures"
QUESTIONS = {
    "word": ("reading_text.png", "What is the word?"),
    "colour": ("color_and_shape.png", "What color is the circle?"),
    "count": ("counting.png", "How many diamonds are in the picture?"),
}

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="demo")
parser.add_argument("--folder", type=Path, default=None)
options = parser.parse_args()
folder = options.folder or Path(tempfile.mkdtemp())
requests, answers = folder / "requests.jsonl", folder / "answers.jsonl"

with requests.open("w") as file:
    for name, (picture, question) in QUESTIONS.items():
        content = [
            {"type": "image_url", "image_url": {"url": (PICTURES / picture).as_uri()}},
            {"type": "text", "text": question},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 20, "temperature": 0}
        line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        file.write(json.dumps(line) + "\n")

summary = tilewise.run_batch(requests, answers, options.model, keep_order=True, allowed_local_media_path=str(PICTURES))
for line in answers.open():
    result = json.loads(line)
    print(f"{result['custom_id']}: {result['response']['body']['choices'][0]['message']['content']}")
print(f"{summary.succeeded} of {summary.lines} lines succeeded")
