"""Work through a folder of finetune requests, several at a time; their adapters train together on one base.

A request is a YAML or JSON file with the settings of `jobs/finetune.py run`, and optionally a priority:

  customer: acme
  subject: mug
  photos: s3://bucket/uploads/acme/mug.zip
  budget: fast
  priority: 10

Store, model, distractors and tracking are the operator's, and the same for all:

  python jobs/finetune_fleet.py --requests s3://bucket/requests --store s3://bucket/store \\
      --model models:/lookalike-mini@champion --distractors s3://bucket/dataset --tracking http://127.0.0.1:5000

On a cluster, four workers with a GPU each, for ever:

  ray job submit --working-dir . --runtime-env infra/ray/runtime-env.yaml -- \\
      python jobs/finetune_fleet.py --requests s3://bucket/requests --store s3://bucket/store \\
      --workers 4 --use_gpu true --at_once 8 --quota 4 --serve true

Each adapter is the one that `jobs/finetune.py run` trains alone. The highest priority comes first, then the customer
with the fewest requests in work, then the oldest request; --quota bounds what a customer has in work. A worker that
dies is started anew, and its requests resume. A request that fails fails alone, and failed/NAME.json beside the
requests says why; done/NAME.*.json has the result of one that is done. Either is done again when its file changes. The
same command resumes after a kill. Several fleets may share a folder. With --serve it waits for further requests.

It ends with 0 if all requests are done, also those that the gate refused, and with 2 if any failed.
"""

from pipelines.entry import EXIT_ERROR, run_job
from pipelines.fleet import FleetConfig, fleet


def main(config: FleetConfig) -> int:
    """Work through the requests, and print a line for each."""
    done = fleet(config)
    for name, result in sorted(done["results"].items()):
        state = "promoted" if result["promoted"] else "refused by the gate"
        print(f"{name}: models:/{result['model']}/{result['version']} {state}; bundle {result['bundle_uri']}")
    for name, why in sorted(done["failed"].items()):
        print(f"{name}: failed: {why}")
    for name in done["busy"]:
        print(f"{name}: left to another process")
    if done["earlier"]:
        print(f"{done['earlier']} requests were done before; their results are in {config.requests.rstrip('/')}/done")
    return EXIT_ERROR if done["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(run_job(FleetConfig, main, __doc__))
