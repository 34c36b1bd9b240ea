#!/usr/bin/env bash
# Trains and evaluates the arms of docs/drawing.md on one core, seed by seed:
#
#   docs/measured/arms.sh SEED...            all arms; start one per core, with other seeds
#   ARMS="direct gvcot" docs/measured/arms.sh SEED...
#
# Needs runs/tiny-base (gvcot sft tiny-codec; gvcot sft tiny-base). What is finished is skipped, so it can be stopped and
# started again. Evaluations end up in docs/measured.
set -euo pipefail
export OMP_NUM_THREADS=1
here=$(dirname "$0")
world=('world.entities=[3,6]' 'world.look_alikes=[0,0]')    # the level chosen in docs/drawing.md
declare -A chain=([direct]=direct [direct-mask]=direct [edit-first]=edit_first [blank]=blank [gvcot]=gvcot)

for seed in "$@"; do
    for arm in ${ARMS:-gvcot direct direct-mask edit-first blank}; do
        run=runs/arm-$arm-$seed
        kept=$here/arm-$arm-$seed.bench.json.gz
        [ -e "$kept" ] && continue
        [ -e "$run/final" ] || gvcot sft "arms/$arm" name="arm-$arm-$seed" seed="$seed"
        probes='[]'
        [ "$arm" = gvcot ] && probes='[true_x_cot,counterfactual_x_cot]' # arms 6 and 7
        gvcot eval "$run" --split bench "${world[@]}" chain.name="${chain[$arm]}" draws=4 'num_steps=[8]' \
            probes="$probes" threads=1 out="$run"
        metrics=(where what_given_where preservation edit_accuracy)
        case $arm in gvcot | edit-first) metrics+=(mask_iou x_cot_change_iou) ;; esac
        [ "$arm" = gvcot ] && metrics+=(probe/true_x_cot/where probe/counterfactual_x_cot/{where,follows})
        gvcot condense "$run/evals/bench-8steps.step_0.json" "$kept" "${metrics[@]/#/--metric=}"
    done
done
