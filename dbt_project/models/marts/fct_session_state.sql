-- The same rules as training.contract.session applies to what the service pushes: feedback in the order
-- of its arrival, sums that start again with another session id or after the idle gap.

{%- set page = page_columns() %}

with feedback as (

    select
        requests.user_id,
        sessions.session_id,
        coalesce(requests.served_session_id, sessions.session_id) as sess_session_id,
        requests.request_id,
        coalesce(requests.feedback_ts, requests.event_ts) as event_timestamp,
        requests.impressions,
        {%- for signal in var('signals') %}
        requests.{{ signal.name }}_count,
        {%- endfor %}
        requests.play_ms,
        {%- for head in var('heads') %}
        requests.shown_p_{{ head }} as p_{{ head }},
        {%- endfor %}
        cast(null as bigint) as known_requests,
        cast(null as bigint) as known_impressions,
        {%- for signal in var('signals') %}
        cast(null as bigint) as known_{{ signal.name }}_count,
        {%- endfor %}
        cast(null as bigint) as known_play_ms,
        {%- for name in page %}
        cast(null as double) as known_decayed_{{ name }},
        {%- endfor %}
        requests.dt
    from {{ ref('int_requests') }} as requests
    inner join {{ ref('int_session_requests') }} as sessions
        on
            requests.request_id = sessions.request_id
            and requests.dt = sessions.dt
    where
        requests.has_feedback
        and {{ in_window('requests.dt') }}
        and {{ in_window('sessions.dt') }}

),

{% if is_incremental() %}
-- sessions that reach into the window: their sums so far are carried on
carried as (

    select
        user_id,
        session_id,
        sess_session_id,
        request_id,
        event_timestamp,
        last_impressions as impressions,
        {%- for signal in var('signals') %}
        last_{{ signal.name }}_count as {{ signal.name }}_count,
        {%- endfor %}
        cast(round(last_play_s * 1000) as bigint) as play_ms,
        {%- for head in var('heads') %}
        last_p_{{ head }} as p_{{ head }},
        {%- endfor %}
        sess_requests as known_requests,
        sess_impressions as known_impressions,
        {%- for signal in var('signals') %}
        sess_{{ signal.name }}_count as known_{{ signal.name }}_count,
        {%- endfor %}
        cast(round(sess_play_s * 1000) as bigint) as known_play_ms,
        {%- for name in page %}
        decayed_{{ name }} as known_decayed_{{ name }},
        {%- endfor %}
        dt
    from {{ this }}
    where
        dt < {{ first_day() }}
        and {{ around_window('dt') }}

),
{% endif %}

events as (

    select * from feedback
    {% if is_incremental() %}
    union all
    select * from carried
    {% endif %}

),

timed as (

    select
        *,
        {{ microseconds('event_timestamp') }} as event_us,
        lag({{ microseconds('event_timestamp') }}) over arrival as previous_us,
        lag(sess_session_id) over arrival as previous_session_id
    from events
    window arrival as (partition by user_id order by event_timestamp, request_id)

),

cut as (

    select
        *,
        case
            when
                sess_session_id = previous_session_id
                and {{ within_gap('previous_us', 'event_us') }}
                then 0
            else 1
        end as starts
    from timed

),

numbered as (

    select
        *,
        sum(starts) over (
            partition by user_id
            order by event_timestamp, request_id
            rows between unbounded preceding and current row
        ) as segment
    from cut

),

-- what a row adds: itself, or, where a carried session begins here, all that was summed up to it
added as (

    select
        *,
        case when starts = 1 then coalesce(known_requests, 1) else 1 end as more_requests,
        case when starts = 1 then coalesce(known_impressions, impressions) else impressions end as more_impressions,
        {%- for signal in var('signals') %}
        case
            when starts = 1 then coalesce(known_{{ signal.name }}_count, {{ signal.name }}_count)
            else {{ signal.name }}_count
        end as more_{{ signal.name }}_count,
        {%- endfor %}
        {%- for name in page %}
        case
            when starts = 1 then coalesce(known_decayed_{{ name }}, {{ page_value(name) }})
            else {{ page_value(name) }}
        end as decayed_1_{{ name }},
        {%- endfor %}
        case when starts = 1 then coalesce(known_play_ms, play_ms) else play_ms end as more_play_ms
    from numbered

),

{{ decayed_sums('added', page) }}

summed as (

    select
        user_id,
        session_id,
        request_id,
        event_timestamp,
        {{ running_sum('more_requests') }} as sess_requests,
        {{ running_sum('more_impressions') }} as sess_impressions,
        {%- for signal in var('signals') %}
        {{ running_sum('more_' ~ signal.name ~ '_count') }} as sess_{{ signal.name }}_count,
        {%- endfor %}
        {{ running_sum('more_play_ms') }} as sess_play_ms,
        impressions as last_impressions,
        {%- for signal in var('signals') %}
        {{ signal.name }}_count as last_{{ signal.name }}_count,
        {%- endfor %}
        play_ms as last_play_ms,
        {%- for head in var('heads') %}
        p_{{ head }} as last_p_{{ head }},
        {%- endfor %}
        {%- for name in page %}
        decayed_{{ decayed_reach() }}_{{ name }} as decayed_{{ name }},
        {%- endfor %}
        sess_session_id,
        dt
    from decayed_{{ decayed_reach() }}

)

select
    user_id,
    session_id,
    request_id,
    event_timestamp,
    sess_requests,
    sess_impressions,
    {%- for signal in var('signals') %}
    sess_{{ signal.name }}_count,
    {%- endfor %}
    {{ seconds('sess_play_ms') }} as sess_play_s,
    last_impressions,
    {%- for signal in var('signals') %}
    last_{{ signal.name }}_count,
    {%- endfor %}
    {{ seconds('last_play_ms') }} as last_play_s,
    {%- for head in var('heads') %}
    last_p_{{ head }},
    {%- endfor %}
    {%- for name in page %}
    decayed_{{ name }},
    {%- endfor %}
    sess_session_id,
    event_timestamp as sess_last_ts,
    dt
from summed
where {{ in_window('dt') }}
