-- A session ends with its id, where the log gives one, and after an idle gap in any case. Sessions may
-- reach into the window from the days before it: those requests are already here, and what they know
-- of their session (its id, how many requests it had) is carried on.

with requests as (

    select
        request_id,
        user_id,
        served_session_id,
        event_ts,
        dt,
        cast(null as string) as known_session_id,
        cast(null as int) as known_step,
        cast(null as {{ instant_type() }}) as known_start
    from {{ ref('int_requests') }}
    where {{ in_window('dt') }}

),

{% if is_incremental() %}
carried as (

    select
        request_id,
        user_id,
        served_session_id,
        event_ts,
        dt,
        session_id as known_session_id,
        step as known_step,
        session_started_ts as known_start
    from {{ this }}
    where
        dt < {{ first_day() }}
        and {{ around_window('dt') }}

),

-- ids that an older session of the user has taken, be it long ago
taken as (

    select distinct
        stored.user_id,
        stored.served_session_id
    from {{ this }} as stored
    inner join (select distinct user_id, served_session_id from requests) as named
        on
            stored.user_id = named.user_id
            and stored.served_session_id = named.served_session_id
    where stored.dt < {{ first_day() }}

),
{% endif %}

events as (

    select * from requests
    {% if is_incremental() %}
    union all
    select * from carried
    {% endif %}

),

timed as (

    select
        *,
        {{ microseconds('event_ts') }} as event_us,
        lag({{ microseconds('event_ts') }}) over (
            partition by user_id, coalesce(served_session_id, '')
            order by event_ts, request_id
        ) as previous_us
    from events

),

cut as (

    select
        *,
        sum(case when {{ within_gap('previous_us', 'event_us') }} then 0 else 1 end) over (
            partition by user_id, coalesce(served_session_id, '')
            order by event_ts, request_id
            rows between unbounded preceding and current row
        ) as session_number
    from timed

),

numbered as (

    select
        *,
        row_number() over in_session as request_number,
        first_value(event_ts) over in_session as first_ts,
        first_value(event_us) over in_session as first_us,
        first_value(known_start) over in_session as carried_start,
        first_value(known_session_id) over in_session as carried_session_id,
        first_value(known_step) over in_session as carried_step
    from cut
    window in_session as (
        partition by user_id, coalesce(served_session_id, ''), session_number
        order by event_ts, request_id
    )

),

named as (

    select
        numbered.*,
        case
            when numbered.carried_session_id is not null then numbered.carried_session_id
            when numbered.served_session_id is null
                then concat(cast(numbered.user_id as string), '-', cast(numbered.first_us as string))
            when numbered.session_number = 1 {% if is_incremental() %}and taken.served_session_id is null{% endif %}
                then numbered.served_session_id
            else concat(numbered.served_session_id, '~', cast(numbered.first_us as string))
        end as session_id
    from numbered
    {% if is_incremental() %}
    left join taken
        on
            numbered.user_id = taken.user_id
            and numbered.served_session_id = taken.served_session_id
    {% endif %}

)

select
    request_id,
    user_id,
    session_id,
    served_session_id,
    event_ts,
    cast(coalesce(carried_step, 0) + request_number - 1 as int) as step,
    coalesce(carried_start, first_ts) as session_started_ts,
    dt
from named
where {{ in_window('dt') }}
