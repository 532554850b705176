"""The ``deploy`` section: which service a new model is for, and what it must show there first."""

from __future__ import annotations

from pydantic import Field, model_validator

from distft.component import Section, refuse
from distft.sections.values import StorageText


class Deploy(Section):
    """A guarded promotion; see docs/serving.md for the checks."""

    state: StorageText | None = Field(
        None, description="the --state of the service, which runs on this machine or in storage that all nodes reach"
    )
    address: str | None = Field(
        None, description="dashboard of the service's cluster, where it is another one: http://HOST:8265"
    )
    token_file: StorageText | None = Field(
        None, description="file with the Ray token of that cluster; by default the token of the environment"
    )
    min_metric: float = Field(0.0, ge=0, le=1, description="ndcg@10 on the golden requests of the new bundle")
    min_of_before: float = Field(
        0.5, ge=0, description="the same, as a share of ndcg@10 in the running model's evaluation"
    )
    min_of_running: float = Field(
        0.95, ge=0, description="ndcg@10 as a share of the running model's on the same requests; refused if surely less"
    )
    min_items: float = Field(0.9, ge=0, le=1, description="share of the running model's items that the new one knows")
    min_coverage: float = Field(
        0.5, ge=0, description="different items that it recommends, as a share of the running model's"
    )
    max_latency_ms: float | None = Field(
        None, gt=0, description="of 95% of its answers, one by one; by default the service's target_latency_s"
    )

    @model_validator(mode="after")
    def _token_is_of_a_cluster(self) -> Deploy:
        if self.token_file is not None and self.address is None:
            text = "this is the token of the cluster at deploy.address, which is not given: give it, or leave this out"
            refuse([(("token_file",), text)])
        return self
