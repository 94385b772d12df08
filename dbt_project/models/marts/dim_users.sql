with users as (

    select
        *,
        row_number() over (partition by user_id, dt order by updated_ts desc) as newest
    from {{ ref('stg_users') }}
    where {{ in_window('dt') }}

)

select
    user_id,
    updated_ts as event_timestamp,
    {%- for feature in var('profile') %}
    {{ adapter.quote(feature.column) }},
    {%- endfor %}
    dt
from users
where newest = 1
