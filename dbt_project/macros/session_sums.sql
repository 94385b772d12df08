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

{# D_n = x_n + decay * D_(n - 1), by doubling how many requests are in it: steps (CTEs) from decayed_1_<name>,
   the x_n of a step, to decayed_<decayed_reach()>_<name>. A running sum of x_n / decay^n would leave what a
   double can hold, and its terms would be added in an order that no engine fixes. #}
{% macro decayed_sums(step, names) -%}
    {%- for lag in decayed_lags() %}
decayed_{{ 2 * lag }} as (

    select
        *,
        {%- for name in names %}
        decayed_{{ lag }}_{{ name }} + cast({{ var('session_decay') ** lag }} as double) * coalesce(
            lag(decayed_{{ lag }}_{{ name }}, {{ lag }}) over arrival, 0
        ) as decayed_{{ 2 * lag }}_{{ name }}{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ step if loop.first else 'decayed_' ~ lag }}
    window arrival as (partition by user_id, segment order by event_timestamp, request_id)

),
    {%- endfor %}
{%- endmacro %}

{# Distances, each twice the one before, until what is left out weighs nothing; and how many requests that is. #}
{% macro decayed_lags() %}
    {%- set lags = [] -%}
    {%- for power in range(20) if var('session_decay') ** (2 ** power) > 1e-9 -%}
        {%- do lags.append(2 ** power) -%}
    {%- endfor -%}
    {{ return(lags) }}
{% endmacro %}
{% macro decayed_reach() %}{{ return(2 * decayed_lags()[-1]) }}{% endmacro %}
