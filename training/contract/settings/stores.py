"""Where states and the engines' own databases are kept."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.contract.settings.section import Name, Section


class StoreSettings(Section):
    online: Literal["sqlite", "redis"] = "sqlite"
    redis_url: str = Field("localhost:6379", description="host:port, for online: redis")
    redis_cluster: bool = Field(
        False,
        description="whether that is a Redis Cluster; redis_url then names some nodes: host:port,host:port",
    )
    redis_password: bool = Field(False, description="whether Redis asks for $MTF_REDIS_PASSWORD")
    history_ttl_days: int | None = Field(
        None,
        ge=1,
        description="a history older than this is unknown, and leaves SQLite; none keeps it (ours)",
    )
    redis_key_ttl_days: int | None = Field(
        None, ge=1, description="Redis forgets a user whom nothing was written of for so long (ours)"
    )

    @model_validator(mode="after")
    def _ttl_of_its_store(self) -> Self:
        if self.history_ttl_days and self.online == "redis":
            raise ValueError("history_ttl_days is for online: sqlite; Redis has redis_key_ttl_days")
        if self.redis_key_ttl_days and self.online == "sqlite":
            raise ValueError("redis_key_ttl_days is for online: redis; SQLite has history_ttl_days")
        return self

    @model_validator(mode="after")
    def _one_server_or_a_cluster(self) -> Self:
        if self.redis_cluster and self.online != "redis":
            raise ValueError("redis_cluster is for online: redis")
        if "," in self.redis_url and not self.redis_cluster:
            raise ValueError("redis_url names several servers: for a Redis Cluster set redis_cluster: true")
        return self

    @property
    def online_type(self) -> str:
        """What Feast calls the online store."""
        return {"sqlite": "feature_repo.online_store.WideSqliteOnlineStore", "redis": "redis"}[self.online]


class PostgresSettings(Section):
    """A PostgreSQL server; its password comes from ``$PGPASSWORD`` or ``$PGPASSFILE``."""

    uses: tuple[Literal["airflow", "feast", "mlflow"], ...] = Field(
        (), description="what is kept there, each in its database mtf_<name>, instead of in files"
    )
    host: str = Field("localhost", pattern=r"^[A-Za-z0-9._-]+$")
    port: int = Field(5432, ge=1, le=65535)
    user: Name = "mtf"

    def url(self, use: str) -> str:
        """SQLAlchemy's address of the database of one use."""
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/mtf_{use}"
