"""Generate images of a subject with a promoted model, a version of it, or any bundle.

Every image carries its prompt, seed, model version and the bundle's hash in its PNG text chunks, and generations.json
lists them; contact_sheet.png shows references, prompts and images together.

  python jobs/generate.py --model models:/lookalike-mini@champion --tracking sqlite:////data/mlflow.db \\
      --reference mug/00.jpg --reference mug/01.jpg \\
      --prompt "a red mug on grass, seen from the left" --prompt "a red mug on snow" --num-images 4 --out ./mug-images

  python jobs/generate.py --model file:///runs/toys-1/bundle --reference s3://photos/mug --prompts-file prompts.txt \\
      --out s3://images/mug --stages 0.85/0.7 --height 64 --width 96

A personal model is named by its customer and subject:

  python jobs/generate.py --model models:/acme--mug@champion --reference mug --prompt "a red mug on sand" --out ./acme

The noise levels of --stages trade text for identity: lower ones follow the prompt more closely. A job that was
submitted to a cluster runs in another folder: give it absolute paths or URIs.
"""

from pipelines.entry import run_job
from pipelines.generate import GenerateConfig, generate


def main(config: GenerateConfig) -> int:
    """Generate, and print where the images are."""
    result = generate(config)
    prompts = {image["prompt"] for image in result["images"]}
    print(f"{len(result['images'])} images of {len(prompts)} prompts and their contact sheet at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(GenerateConfig, main, __doc__))
