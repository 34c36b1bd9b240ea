#!/usr/bin/env bash
# Trains and evaluates the arms of docs/drawing.md on one core, seed by seed:
#
#   docs/measured/arms.sh SEED...            all five arms; start one per core, with other seeds
#   ARMS="direct gvcot" STEPS=2000 docs/measured/arms.sh SEED...
#
# Needs runs/tiny-base (gvcot sft tiny-codec; gvcot sft tiny-base). What is finished is skipped, so it can be stopped and
# started again. Evaluations end up in docs/measured.
set -euo pipefail
export OMP_NUM_THREADS=1
here=$(dirname "$0")
steps=${STEPS:-1000}
world=('world.entities=[3,6]' 'world.look_alikes=[0,0]')    # the level chosen in docs/drawing.md
declare -A chain=([direct]=direct [direct-mask]=direct [edit-first]=edit_first [blank]=blank)
declare -A changed=(    # arm 5 with another weight of x_cot's loss
    [gvcot-unlabelled]='phase_loss_weights.x_cot=0' [gvcot-half]='phase_loss_weights.x_cot=0.5')
# gvcot-staged is arm 5 after a stage 1: painting and edits as samples of their own for the first half of the steps.

for seed in "$@"; do
    for arm in ${ARMS:-gvcot direct direct-mask edit-first blank}; do
        name=arm-$arm-$steps-$seed
        run=runs/$name
        kept=$here/$name.bench.json.gz
        [ -e "$kept" ] && continue
        recipe=$arm override=()
        [ -n "${changed[$arm]:-}" ] && recipe=gvcot override=("${changed[$arm]}")
        own_steps=$steps
        if [ "$arm" = gvcot-staged ]; then
            recipe=gvcot own_steps=$((steps / 2)) first=arm-first-stage-$own_steps-$seed
            override=(init="runs/$first/final")
            [ -e "runs/$first/final" ] || gvcot sft arms/direct-mask name="$first" seed="$seed" steps="$own_steps"
        fi
        [ -e "$run/final" ] || gvcot sft "arms/$recipe" name="$name" seed="$seed" steps="$own_steps" "${override[@]}"
        probes='[]' metrics=(where what_given_where preservation edit_accuracy)
        [ "$recipe" = gvcot ] && probes='[true_x_cot,counterfactual_x_cot]' # arms 6 and 7
        case $recipe in gvcot | edit-first) metrics+=(mask_iou x_cot_change_iou) ;; esac
        [ "$recipe" = gvcot ] && metrics+=(probe/true_x_cot/where probe/counterfactual_x_cot/{where,follows})
        gvcot eval "$run" --split bench "${world[@]}" chain.name="${chain[$arm]:-gvcot}" draws=2 'num_steps=[8]' \
            probes="$probes" threads=1 out="$run"
        gvcot condense "$run/evals/bench-8steps.step_0.json" "$kept" "${metrics[@]/#/--metric=}"
    done
done
