{# Over the feedback of one session, in the order of its arrival. #}
{% macro running_sum(column) -%}
    cast(
        sum({{ column }}) over (
            partition by user_id, segment
            order by event_timestamp, request_id
            rows between unbounded preceding and current row
        ) as bigint
    )
{%- endmacro %}
