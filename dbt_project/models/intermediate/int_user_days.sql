select
    user_id,
    cast(sum(impressions) as bigint) as impressions,
    max(event_ts) as last_ts,
    dt
from {{ ref('int_requests') }}
where
    impressions > 0
    and {{ in_window('dt') }}
group by user_id, dt
