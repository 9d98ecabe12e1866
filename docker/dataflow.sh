#!/usr/bin/env bash
# Pre-processing on Dataflow. Edit the three places marked EDIT. It needs
# `pip install 'carbox[preprocess]' 'apache-beam[gcp]'` and the image, pushed, built with
#
#     docker build -f docker/preprocess.Dockerfile --build-arg CLOUD=gcp --build-arg RUN_AS=root .
set -euo pipefail

project=PROJECT region=us-central1 # EDIT
bucket=gs://BUCKET                 # EDIT: holds cars.zip, gets data/tfrecords
image=carbox-preprocess:latest     # EDIT: where you pushed it

python -m preprocess.run --runner=DataflowRunner \
    --project="$project" --region="$region" --temp_location="$bucket/tmp" \
    --sdk_container_image="$image" --sdk_location=container \
    --input="$bucket/cars.zip" --output="$bucket/data/tfrecords"
