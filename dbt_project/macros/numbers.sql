{# Sums of doubles depend on the order of their terms, which a parallel engine does not fix. What is
   summed over rows is therefore an integer or a decimal, so that a rerun gives the same bytes. #}

{% macro seconds(milliseconds) -%}
    cast({{ milliseconds }} as double) / cast(1000 as double)
{%- endmacro %}

{# min(play / duration, 1), that can be summed exactly; of a known duration only. #}
{% macro completion(play_ms, duration_ms) -%}
    {{ exact('least(cast(' ~ play_ms ~ ' as double) / cast(' ~ duration_ms ~ ' as double), 1)', 12) }}
{%- endmacro %}

{# A double as decimal(18, places). It is rounded as a double, because engines make a decimal of one that lies
   close to the middle of two in different ways. #}
{% macro exact(value, places) -%}
    cast(
        cast(floor({{ value }} * cast({{ 10 ** places }} as double) + cast(0.5 as double)) as bigint)
        * cast({{ '0.' ~ '0' * (places - 1) ~ '1' }} as decimal({{ places + 1 }}, {{ places }}))
        as decimal(18, {{ places }})
    )
{%- endmacro %}

{# Eq. (2), of one item or of sums over items: play time and integrity, then the signals, whose columns are
   named by the signal between a prefix and a suffix. #}
{% macro watch_reward(capped_play_ms, completion) -%}
    cast({{ var('play_time_weight') }} as double) * {{ seconds(capped_play_ms) }}
        + cast({{ var('integrity_weight') }} as double) * cast({{ completion }} as double)
{%- endmacro %}
{% macro reward(capped_play_ms, completion, prefix, suffix) -%}
    {{ watch_reward(capped_play_ms, completion) }}
        {%- for signal in var('signals') %}
        + cast({{ signal.weight }} as double) * {{ prefix ~ signal.name ~ suffix }}
        {%- endfor %}
{%- endmacro %}

{# A reward (a double) that can be summed, and its square summed, exactly: to one millionth. #}
{% macro exact_reward(value) -%}
    {{ exact(value, 6) }}
{%- endmacro %}
{% macro exact_return(sum_of_rewards) -%}
    cast({{ sum_of_rewards }} as decimal(18, 6))
{%- endmacro %}

{# A prediction that can be summed exactly: to one billionth, and below one billion. It is a float, whose 24 bits
   lie in the middle of two billionths or far enough from it: the engines' own rounding is the same. #}
{% macro exact_prediction(value) -%}
    cast(least(greatest(cast({{ value }} as double), -999999999), 999999999) as decimal(18, 9))
{%- endmacro %}

{# a / b, or 0 where b is 0 #}
{% macro ratio(numerator, denominator) -%}
    coalesce(cast({{ numerator }} as double) / nullif(cast({{ denominator }} as double), 0), 0)
{%- endmacro %}
