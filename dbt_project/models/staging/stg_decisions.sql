{%- set columns = lake_columns(var('decision_columns')) -%}

with source as (

    select * from {{ lake('decisions', columns) }}

),

renamed as (

    select
        {%- for name in columns %}
        {#- the marts' session_id is the session that dbt cuts, by this id and by the idle gap #}
        {{ name }}{{ ' as served_session_id' if name == 'session_id' }},
        {%- endfor %}
        dt
    from source

)

select * from renamed
