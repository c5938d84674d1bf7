#!/bin/bash
# A study in one Slurm allocation, which puts itself back into the queue at its time limit until the study is built:
#
#   sbatch scripts/slurm.sh mini -p data=data -p model=CHECKPOINT --store /shared/studies
#
# The arguments are those of `blindsweep run`. Options before the script's name replace those below:
#   sbatch --time=12:00:00 --gres=gpu:4 scripts/slurm.sh ...
#
#SBATCH --job-name=blindsweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=blindsweep-%j.log
# To this shell only (B:), which passes it on: Ray's own processes would end by it. Slurm may send it a minute early.
#SBATCH --signal=B:USR1@180

# Where the command is; the queue's copy of this script lies elsewhere.
BLINDSWEEP=${BLINDSWEEP:-$SLURM_SUBMIT_DIR/.venv/bin/blindsweep}

"$BLINDSWEEP" run "$@" &
run=$!
noticed=
trap 'noticed=1; kill -USR1 $run' USR1
trap 'kill -TERM $run' TERM

# A signal ends `wait` early; the run itself ends when it is gone, and `wait` still knows how.
wait $run
while kill -0 $run 2>/dev/null; do
    wait $run
done
wait $run
code=$?

# After a notice the run ends with 0, complete or not: the next allocation finds out. Before it listens it ends with 128 + 10.
if [ -n "$noticed" ] && { [ $code -eq 0 ] || [ $code -eq 138 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
