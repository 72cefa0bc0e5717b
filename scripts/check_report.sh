#!/bin/sh
# Opens reports in headless Chromium at phone and desktop width, light and dark; see check_report.py.
#
#     scripts/check_report.sh                       the samples that the tests write, and a video of theirs
#     scripts/check_report.sh FOLDER ...            report.html and the videos of result folders
#
# Screenshots go to target/report-check. Without a browser it says so and succeeds.
set -eu
cd "$(dirname "$0")/.."
out=target/report-check
if [ $# -eq 0 ]; then
    cargo test --quiet -p simloop-benchmarks --test report_render results_are_written
    cargo test --quiet -p simloop-benchmarks --test report_video a_video_for_the_browser
    for folder in target/tmp/report-samples/*/; do
        set -- "$@" "$folder"
    done
fi
n=$#
while [ "$n" -gt 0 ]; do
    folder=${1%/}
    shift
    n=$((n - 1))
    if [ -f "$folder/report.html" ]; then
        set -- "$@" "$folder/report.html"
    fi
    for video in "$folder"/videos/*.mp4; do
        if [ -f "$video" ]; then
            set -- "$@" --video "$video"
        fi
    done
done
exec python3 scripts/check_report.py --out "$out" "$@"
