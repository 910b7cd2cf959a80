#!/bin/sh
# One picture, sent inside the request. The server: tilewise serve
# examples/curl/one_image.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(dirname "$0")/../../src/tilewise/demo/pictures

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,$(base64 <"$pictures/counting.png" | tr -d '\n')"}},
        {"type": "text", "text": "How many diamonds are in the picture?"}
    ]}],
    "temperature": 0
}
BODY
