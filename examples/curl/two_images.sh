#!/bin/sh
# Two pictures and a second turn. The server:
#     tilewise serve --allowed-local-media-path .
# examples/curl/two_images.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(cd "$(dirname "$0")/../../src/tilewise/demo/pictures" && pwd)

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "Image-1: <image>\nImage-2: <image>\nIn which picture are there more hearts?"},
            {"type": "image_url", "image_url": {"url": "file://$pictures/comparing_1.png"}},
            {"type": "image_url", "image_url": {"url": "file://$pictures/comparing_2.png"}}
        ]},
        {"role": "assistant", "content": "Image-2"},
        {"role": "user", "content": "And how many hearts are in Image-1?"}
    ],
    "temperature": 0
}
BODY
