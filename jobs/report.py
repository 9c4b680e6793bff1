"""Write one HTML page about a model from the results of the other jobs; it loads nothing from other places.

Every section is optional: the page shows the results that are named.

  python jobs/report.py --dataset file:///data/toys --run file:///runs/toys-1 --scores file:///runs/toys-1/scores \\
      --decision file:///runs/toys-1/promotion --out file:///runs/toys-1/report.html

  python jobs/report.py --finetune s3://store/customers/acme/mug --generation s3://images/mug --out ./mug.html
"""

from pipelines.entry import run_job
from pipelines.report import ReportConfig, report


def main(config: ReportConfig) -> int:
    """Write the page, and print where it is."""
    size = report(config)
    print(f"a page of {size / 2**20:.1f} MiB at {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(ReportConfig, main, __doc__))
