{# The columns are together unique, and none of them is ever null: one scan of the days, one node a model. #}
{% test primary_key(model, columns) %}
select
    {{ columns | join(', ') }},
    count(*) as rows_of_it
from {{ model }}
group by {{ columns | join(', ') }}
having
    count(*) > 1
    {%- for column in columns %}
    or {{ column }} is null
    {%- endfor %}
{% endtest %}
