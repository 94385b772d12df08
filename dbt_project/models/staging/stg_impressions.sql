{%- set columns = {
    'request_id': 'string', 'session_id': 'string', 'user_id': var('user_id_type'),
    'item_id': var('item_id_type'),
    'event_ts': instant_type(), 'feedback_ts': instant_type(), 'position': 'int',
    'play_time_ms': 'bigint', 'duration_ms': 'bigint',
} -%}
{%- for signal in var('signals') -%}
{%- do columns.update({signal.column: 'int'}) -%}
{%- endfor -%}
{%- for head in var('heads') -%}
{%- do columns.update({'p_' ~ head: 'float'}) -%}
{%- endfor -%}

with source as (

    select * from {{ lake('impressions', columns) }}

),

renamed as (

    select
        request_id,
        session_id as served_session_id,
        user_id,
        item_id,
        event_ts,
        feedback_ts,
        position as shown_position,
        -- null on days that were landed before the settings named the signal; else validation refuses it
        {%- for signal in var('signals') %}
        coalesce(cast({{ adapter.quote(signal.column) }} as int), 0) as signal_{{ signal.name }},
        {%- endfor %}
        {%- for head in var('heads') %}
        coalesce({{ adapter.quote('p_' ~ head) }}, 0) as p_{{ head }},
        {%- endfor %}
        play_time_ms as play_ms,
        duration_ms,
        dt
    from source

)

select * from renamed
