"""Generate images of a subject with a promoted model, a version of it, or any bundle; or what many requests ask for.

Every image carries its prompt, seed, model version and the bundle's hash in its PNG text chunks, and generations.json
lists them; contact_sheet.png shows references, prompts and images together.

  python jobs/generate.py --model models:/lookalike-mini@champion --tracking sqlite:////data/mlflow.db \\
      --reference mug/00.jpg --reference mug/01.jpg \\
      --prompt "a red mug on grass, seen from the left" --prompt "a red mug on snow" --num-images 4 --out ./mug-images

  python jobs/generate.py --model file:///runs/toys-1/bundle --reference s3://photos/mug --prompts-file prompts.txt \\
      --out s3://images/mug --stages 0.85/0.7 --height 64 --width 96

A personal model is named by its customer and subject:

  python jobs/generate.py --model models:/acme--mug@champion --reference mug --prompt "a red mug on sand" --out ./acme

Many requests, of any models, are a file of JSON lines; what a line does not set is taken from the command:

  {"id": "mug-1", "model": "models:/acme--mug@champion", "reference": "s3://b/mug", "prompt": "a mug", "seed": 7}
  {"id": "dog-1", "model": "models:/zoe--dog@champion", "reference": ["s3://b/dog/0.jpg"], "prompt": "a dog"}

  python jobs/generate.py --requests s3://b/requests.jsonl --out s3://b/images --steps 12 --batch-size 16

Adapters of different customers on one base share batches, if size, steps, guidance and stages are equal; each image is
the one that its request gives alone. OUT/ID receives what a command of its own writes, and OUT/results.jsonl a line for
each request. One that fails, or whose places belong to two customers, fails alone, and its line says why: then the exit
code is 2. The same command generates what is missing. Actors on other machines read the references themselves.

The noise levels of --stages trade text for identity: lower ones follow the prompt more closely. A job that was
submitted to a cluster runs in another folder: give it absolute paths or URIs.
"""

from pipelines.entry import EXIT_ERROR, run_job
from pipelines.generate import GenerateConfig, generate, generate_many


def main(config: GenerateConfig) -> int:
    """Generate, and print where the images are."""
    if config.requests is not None:
        done = generate_many(config)
        print(
            f"{done['requests']} requests: {done['generated']} generated, {done['done before']} done before,"
            f" {done['failed']} failed; {done['results']}"
        )
        return EXIT_ERROR if done["failed"] else 0
    result = generate(config)
    prompts = {image["prompt"] for image in result["images"]}
    print(f"{len(result['images'])} images of {len(prompts)} prompts and their contact sheet at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(GenerateConfig, main, __doc__))
