{{ config(meta={'by_user': true}) }}

-- Not a dbt snapshot: a snapshot takes what a table holds *now* and stamps it with the clock, so a day run
-- late, twice or out of order writes a history that never was. This one is computed from the landed days
-- alone: the versions of every user whose days were replaced are made anew, because a late day closes one
-- that an earlier day opened.

with users as (

    select * from {{ ref('dim_users') }}
    {% if is_incremental() and target.type != 'spark' -%}  {# Spark overwrites days: all is made anew #}
    where user_id not in (select user_id from {{ this }})
    {%- endif %}

),

compared as (

    select
        *,
        {%- for feature in var('profile') %}
        lag({{ adapter.quote(feature.column) }}) over days as {{ adapter.quote('previous_' ~ feature.column) }},
        {%- endfor %}
        row_number() over days as day_number
    from users
    window days as (partition by user_id order by dt)

),

changes as (

    select * from compared
    where
        day_number = 1
        {%- for feature in var('profile') %}
        or {{ adapter.quote(feature.column) }} is distinct from {{ adapter.quote('previous_' ~ feature.column) }}
        {%- endfor %}

)

select
    user_id,
    cast(row_number() over versions as int) as version,
    event_timestamp as valid_from,
    lead(event_timestamp) over versions as valid_to,
    {%- for feature in var('profile') %}
    {{ adapter.quote(feature.column) }},
    {%- endfor %}
    dt
from changes
window versions as (partition by user_id order by dt)
