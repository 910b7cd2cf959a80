#!/bin/sh
# One function that has to be called. The server:
#     tilewise serve --allowed-local-media-path .
# examples/curl/tools.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(cd "$(dirname "$0")/../../src/tilewise/demo/pictures" && pwd)

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file://$pictures/follow_up.png"}},
        {"type": "text", "text": "Where is the orange cross?"}
    ]}],
    "tools": [{"type": "function", "function": {
        "name": "move_camera",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["left", "right", "top", "bottom"]}},
            "required": ["place"],
            "additionalProperties": false
        }
    }}],
    "tool_choice": {"type": "function", "function": {"name": "move_camera"}},
    "temperature": 0
}
BODY
