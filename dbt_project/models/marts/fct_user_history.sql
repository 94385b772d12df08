-- The last impressions of every user who was active on a day of the window, up to the end of that day.
-- Only the days that can hold them are read of each user: counted back from their first active day of
-- the window until there are enough.

with known_days as (

    select * from {{ ref('int_user_days') }}
    where dt <= {{ last_day() }}

),

active_days as (

    select
        user_id,
        dt
    from known_days
    where {{ in_window('dt') }}

),

first_active as (

    select
        user_id,
        min(dt) as first_dt
    from active_days
    group by user_id

),

counted_back as (

    select
        known_days.user_id,
        known_days.dt,
        first_active.first_dt,
        sum(known_days.impressions) over (
            partition by known_days.user_id
            order by case when known_days.dt <= first_active.first_dt then 0 else 1 end, known_days.dt desc
            rows between unbounded preceding and current row
        ) - known_days.impressions as newer_impressions
    from known_days
    inner join first_active on known_days.user_id = first_active.user_id

),

needed_days as (

    select
        user_id,
        dt
    from counted_back
    where
        dt > first_dt
        or newer_impressions < {{ var('history_length') }}

),

impressions as (

    select
        impressions.*,
        sessions.session_id,
        row_number() over (
            partition by impressions.user_id
            order by impressions.event_ts, impressions.request_id, impressions.shown_position, impressions.item_id
        ) as impression_number
    from {{ ref('stg_impressions') }} as impressions
    inner join needed_days
        on
            impressions.user_id = needed_days.user_id
            and impressions.dt = needed_days.dt
    inner join {{ ref('int_session_requests') }} as sessions
        on
            impressions.request_id = sessions.request_id
            and impressions.dt = sessions.dt

),

last_numbers as (

    select
        user_id,
        dt,
        max(impression_number) as last_number
    from impressions
    group by user_id, dt

),

windows as (

    select
        active_days.user_id,
        active_days.dt,
        last_numbers.last_number
    from active_days
    inner join last_numbers
        on
            active_days.user_id = last_numbers.user_id
            and active_days.dt = last_numbers.dt

),

summed as (

    select
        windows.user_id,
        windows.dt,
        cast(count(*) as bigint) as hist_count,
        {%- for signal in var('signals') %}
        sum(impressions.signal_{{ signal.name }}) as {{ signal.name }}_count,
        {%- endfor %}
        sum(impressions.play_ms) as play_ms,
        sum(case when impressions.duration_ms > 0 then 1 else 0 end) as known_durations,
        sum(
            case
                when impressions.duration_ms > 0
                    then {{ completion('impressions.play_ms', 'impressions.duration_ms') }}
            end
        ) as completion,
        cast(count(distinct impressions.session_id) as bigint) as sessions,
        cast(count(distinct impressions.dt) as bigint) as days,
        max(impressions.event_ts) as hist_last_ts
    from windows
    inner join impressions
        on
            windows.user_id = impressions.user_id
            and windows.last_number >= impressions.impression_number
            and windows.last_number - {{ var('history_length') }} < impressions.impression_number
    group by windows.user_id, windows.dt

)

select
    user_id,
    {{ end_of_day('dt') }} as event_timestamp,
    {{ end_of_day('dt') }} as created_timestamp,
    hist_count,
    {%- for signal in var('signals') %}
    {{ ratio(signal.name ~ '_count', 'hist_count') }} as hist_{{ signal.name }}_rate,
    {%- endfor %}
    {{ ratio(seconds('play_ms'), 'hist_count') }} as hist_play_s,
    {{ ratio('completion', 'known_durations') }} as hist_completion,
    {{ ratio('sessions', 'days') }} as hist_daily_sessions,
    {{ ratio('hist_count', 'sessions') }} as hist_session_length,
    cast(
        floor(
            ({{ microseconds(end_of_day('dt')) }} - {{ microseconds('hist_last_ts') }})
            / cast(86400000000 as double)
        ) as bigint
    ) as hist_days_since_last,
    hist_last_ts,
    dt
from summed
