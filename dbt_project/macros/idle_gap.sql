{# The idle gap that ends a session: whether two instants, in microseconds since 1970, are at most the gap apart,
   each cut to its whole second, as the online store keeps them. training.contract.session.within_gap is the
   same rule for the service; tests/dbt_project/test_sessions.py holds both against each other. #}
{% macro within_gap(one, other) -%}
    abs({{ whole_second(other) }} - {{ whole_second(one) }}) <= {{ (var('session_gap_minutes') * 60000000) | round | int }}
{%- endmacro %}

{% macro whole_second(microseconds) -%}
    ({{ microseconds }} - {{ microseconds }} % 1000000)
{%- endmacro %}

{# Days that one idle gap can span, beyond the day it begins on. #}
{% macro reach_days() %}{{ return(1 + (var('session_gap_minutes') // 1440) | int) }}{% endmacro %}
