#!/bin/sh
# An answer as it is generated, as server-sent events. The server:
#     tilewise serve --allowed-local-media-path .
# examples/curl/streaming.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(cd "$(dirname "$0")/../../src/tilewise/demo/pictures" && pwd)

curl --no-buffer --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file://$pictures/color_and_shape.png"}},
        {"type": "text", "text": "Which shape is on the left?"}
    ]}],
    "temperature": 0,
    "stream": true,
    "stream_options": {"include_usage": true}
}
BODY
