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

{# What a request tells of its page: names of training.contract.state.session_columns after last_ and decayed_. #}
{% macro page_columns() %}
    {%- set names = ['impressions'] -%}
    {%- for signal in var('signals') -%}{%- do names.append(signal.name ~ '_count') -%}{%- endfor -%}
    {%- do names.append('play_s') -%}
    {{ return(names + head_columns()) }}
{% endmacro %}
{% macro page_value(name) -%}
    {{ seconds('play_ms') if name == 'play_s' else 'cast(' ~ name ~ ' as double)' }}
{%- endmacro %}

{# Distances, each twice the one before, at which a decayed sum is added to itself, until what is left out
   weighs nothing. #}
{% macro decayed_lags() %}
    {%- set lags = [] -%}
    {%- for power in range(20) if var('session_decay') ** (2 ** power) > 1e-9 -%}
        {%- do lags.append(2 ** power) -%}
    {%- endfor -%}
    {{ return(lags) }}
{% endmacro %}
