{%- set columns = {
    'request_id': 'string', 'session_id': 'string', 'user_id': 'bigint', 'event_ts': instant_type(),
    'policy_version': 'string', 'arm': 'string', 'state': float_list_type(),
    'action': float_list_type(), 'action_mean': float_list_type(), 'log_density': 'double',
    'fallback': 'string', 'state_spec': 'string',
} -%}

with source as (

    select * from {{ lake('decisions', columns) }}

),

renamed as (

    select
        request_id,
        session_id as served_session_id,
        user_id,
        event_ts,
        policy_version,
        arm,
        state as served_state,
        action as served_action,
        action_mean,
        log_density,
        fallback,
        state_spec,
        dt
    from source

)

select * from renamed
