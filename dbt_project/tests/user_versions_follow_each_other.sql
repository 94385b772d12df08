-- Of users with a changed day: a version ends where the next one begins, and only the last one is open.

with changed as (

    select distinct user_id from {{ get_where_subquery(ref('dim_users')) }}

),

versions as (

    select
        stored.user_id,
        stored.version,
        stored.valid_from,
        stored.valid_to,
        lead(stored.valid_from) over (partition by stored.user_id order by stored.version) as next_from
    from {{ ref('dim_user_versions') }} as stored
    inner join changed on stored.user_id = changed.user_id

)

select * from versions
where
    valid_to <= valid_from
    or valid_to is distinct from next_from
