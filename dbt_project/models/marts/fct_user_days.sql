-- What a user saw and did on a day: the terms of eq. (2), and their dwell time. `mtf reward` holds the one
-- against the other of later days.

select
    user_id,
    cast(count(distinct request_id) as bigint) as requests,
    cast(count(*) as bigint) as impressions,
    {%- for signal in var('signals') %}
    cast(sum(signal_{{ signal.name }}) as bigint) as {{ signal.name }}_count,
    {%- endfor %}
    {{ seconds('sum(play_ms)') }} as play_s,
    {{ seconds('sum(least(play_ms, ' ~ var('play_time_cap_ms') ~ '))') }} as capped_play_s,
    coalesce(
        cast(sum(case when duration_ms > 0 then {{ completion('play_ms', 'duration_ms') }} end) as double), 0
    ) as integrity,
    dt
from {{ ref('stg_impressions') }}
where {{ in_window('dt') }}
group by user_id, dt
