-- A change is stamped within the day that brought it: a service cannot have known it before, and knows it
-- from the end of that day on. A point-in-time join on the stamp therefore takes no value from the future,
-- however late a change arrived.

with users as (

    select
        *,
        row_number() over (partition by user_id, dt order by updated_ts desc) as newest,
        {{ end_of_day(days_after('dt', -1)) }} as day_begins,
        {{ instant(microseconds(end_of_day('dt')) ~ ' - 1') }} as day_ends
    from {{ ref('stg_users') }}
    where {{ in_window('dt') }}

)

select
    user_id,
    case
        when updated_ts < day_begins then day_begins
        when updated_ts > day_ends then day_ends
        else updated_ts
    end as event_timestamp,
    {%- for feature in var('profile') %}
    {{ adapter.quote(feature.column) }},
    {%- endfor %}
    dt
from users
where newest = 1
