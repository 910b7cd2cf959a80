#!/bin/sh
# A video, of which two frames are looked at. The server:
#     tilewise serve --allowed-local-media-path .
# examples/curl/video.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
examples=$(cd "$(dirname "$0")/.." && pwd)

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": "file://$examples/clip.mp4"}},
        {"type": "text", "text": "In which picture are there more hearts?"}
    ]}],
    "media_io_kwargs": {"video": {"num_frames": 2}},
    "temperature": 0
}
BODY
