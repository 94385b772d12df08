{% test exactly_one(model, conditions) %}
select *
from {{ model }}
where
    {% for condition in conditions -%}
    case when {{ condition }} then 1 else 0 end {{ '+' if not loop.last }}
    {% endfor -%}
    <> 1
{% endtest %}
