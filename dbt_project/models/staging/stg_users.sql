{%- set columns = {'user_id': var('user_id_type'), 'updated_ts': instant_type()} -%}
{%- for feature in var('profile') -%}
{%- do columns.update({feature.column: feature.type}) -%}
{%- endfor -%}

with source as (

    select * from {{ lake('users', columns) }}

),

renamed as (

    select
        user_id,
        updated_ts,
        {%- for feature in var('profile') %}
        cast({{ adapter.quote(feature.column) }} as {{ feature.type }}) as {{ adapter.quote(feature.column) }},
        {%- endfor %}
        dt
    from source

)

select * from renamed
