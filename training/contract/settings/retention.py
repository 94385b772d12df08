"""How long what lies in the data folder stays there."""

from pydantic import Field

from training.contract.settings.section import Section


class RetentionSettings(Section):
    """Days are counted back from the newest landed one; what is still needed stays."""

    lake_days: int = Field(400, ge=1, description="of landed logs and the service's own log files (ours)")
    warehouse_days: int = Field(400, ge=1, description="of the marts' rows and exports (ours)")
    models_days: int = Field(90, ge=1, description="of challengers, their MLflow runs and Bentos (ours)")
    reports_days: int = Field(400, ge=1, description="of pages, Data Docs and the stages' records (ours)")
    serving_policies: int = Field(
        30, ge=0, description="promoted policy files kept beside those a rollback can go back to (ours)"
    )
    schedule: str = Field(
        "0 5 * * 0", description="cron of the DAG mtf_retention, in calendar.timezone (ours)"
    )
    history_days: int = Field(
        400, ge=1, description="a user not seen for so long holds no old day for their history (ours)"
    )
