"""Launchers: what each tells a process, and the mistakes in starting several. test_distributed.py starts them."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from tool_runs import ROOT, assert_refused, derived_config, free_port, iterations, run_tool, small_data

from repvgg_mm import UserError
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.training.launchers import LAUNCHERS, check_alone, set_ranks

pytestmark = pytest.mark.stack

TOLD = {
    'pytorch': dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='first', MASTER_PORT='29511'),
    'mpi': dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_LOCAL_RANK='1',
                OMPI_COMM_WORLD_LOCAL_SIZE='2'),
    'slurm': dict(SLURM_PROCID='3', SLURM_STEP_NUM_TASKS='4', SLURM_NTASKS='8', SLURM_LOCALID='1',
                  SLURM_STEP_NODELIST='node[07-08]', SLURM_NODELIST='node[01-08]'),
}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets the variables of a launcher, and no others."""
    names = [name for variables in TOLD.values() for name in variables]
    for name in names:
        monkeypatch.setenv(name, '')  # so that what a test sets is undone
        monkeypatch.delenv(name)

    def tell(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


def ranks() -> list[str]:
    return [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')]


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A program of Slurm's that is not installed here: it writes the machines that a list stands for."""
    program = tmp_path / 'scontrol'
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')


def test_what_torchrun_tells_stays(environment):
    environment(**TOLD['pytorch'])
    set_ranks('pytorch')
    assert ranks() == ['3', '4', '1', 'first', '29511']


def test_mpirun_on_several_machines(environment):
    environment(**TOLD['mpi'], LOCAL_RANK='0', MASTER_ADDR='first')  # tools/train.py has set the local rank
    set_ranks('mpi')
    assert ranks() == ['3', '4', '1', 'first', '29500']


def test_mpirun_on_one_machine_needs_no_address(environment):
    environment(**{**TOLD['mpi'], 'OMPI_COMM_WORLD_LOCAL_SIZE': '4'}, MASTER_PORT='29511')
    set_ranks('mpi')
    assert ranks() == ['3', '4', '1', '127.0.0.1', '29511']


def test_mpirun_on_several_machines_without_an_address(environment):
    environment(**TOLD['mpi'])
    with pytest.raises(UserError, match=r'several machines meet.*MASTER_ADDR is not set.*mpirun -x MASTER_ADDR=HOST'):
        set_ranks('mpi')


def test_srun_tells_of_its_step_and_not_of_the_job(environment, scontrol):
    environment(**TOLD['slurm'])
    set_ranks('slurm')
    assert ranks() == ['3', '4', '1', 'node07', '29500']


def test_an_address_that_is_set_is_taken(environment):
    environment(**TOLD['slurm'], MASTER_ADDR='other')
    set_ranks('slurm')
    assert ranks() == ['3', '4', '1', 'other', '29500']


@pytest.mark.parametrize('machines', ['node[01', ''])
def test_machines_that_scontrol_does_not_tell(machines, environment, scontrol):
    environment(**{**TOLD['slurm'], 'SLURM_STEP_NODELIST': machines})
    with pytest.raises(UserError, match=r'first machine of the job step, and scontrol .* Set MASTER_ADDR'):
        set_ranks('slurm')


@pytest.mark.parametrize('name', LAUNCHERS)
@pytest.mark.parametrize('field', ['rank', 'count', 'local_rank'])
def test_a_process_that_the_launcher_has_not_started(name, field, environment):
    missing = getattr(LAUNCHERS[name], field)
    environment(**{variable: value for variable, value in TOLD[name].items() if variable != missing})
    with pytest.raises(UserError, match=rf'--launcher {name} is for processes .*\({missing} is not set\)\. Start it'):
        set_ranks(name)


def test_a_batch_script_is_no_step(environment):
    """Slurm sets these three in it."""
    environment(SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_LOCALID='0')
    with pytest.raises(UserError, match=r"Slurm's srun starts.*SLURM_STEP_NUM_TASKS is not set"):
        set_ranks('slurm')
    check_alone()


@pytest.mark.parametrize('name', LAUNCHERS)
def test_several_processes_without_a_launcher(name, environment):
    environment(**TOLD[name])
    with pytest.raises(UserError, match=rf'has started 4 here without it\. Add --launcher {name}, or --launcher none'):
        check_alone()
    environment(**{LAUNCHERS[name].count: '1'})
    check_alone()


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=1, size=32)


def train(shapes, folder, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    """tools/train.py, one step of the shapes config."""
    words = ['tools/train.py', 'configs/pspnet_repvgg_a0_shapes.py', '--work-dir', folder / 'work', *flags]
    options = ['--cfg-options', *small_data(shapes), *iterations(1)]
    return run_tool(*words, *options, check=False, **variables)


def test_tools_started_without_their_launcher(shapes, tmp_path):
    assert_refused(train(shapes, tmp_path, '--launcher', 'pytorch'), '--launcher pytorch is for processes that ')
    assert_refused(train(shapes, tmp_path, **TOLD['mpi']), "Open MPI's mpirun has started 4 here without it")
    assert not (tmp_path / 'work' / 'last_checkpoint').exists()


@pytest.mark.parametrize('address', ['127.0.0.1', 'no-such-host.invalid'])
def test_where_the_processes_cannot_meet(address, shapes, tmp_path):
    """A program has the port, or there is no such machine."""
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen()
        place = dict(MASTER_ADDR=address, MASTER_PORT=str(other.getsockname()[1]))
        variables = {**TOLD['mpi'], 'OMPI_COMM_WORLD_RANK': '0', **place}
        result = train(shapes, tmp_path, '--launcher', 'mpi', **variables)
    assert_refused(result, 'The processes meet at MASTER_ADDR and MASTER_PORT, and rank 0 of 4 did not find the others',
                   f'at {address}:{place["MASTER_PORT"]} (', 'See docs/train.md, section "Several processes"')


def test_others_that_do_not_come(shapes, tmp_path):
    variables = {**TOLD['mpi'], 'OMPI_COMM_WORLD_RANK': '0', 'MASTER_ADDR': '127.0.0.1',
                 'MASTER_PORT': str(free_port())}
    config = derived_config(tmp_path / 'patient.py', "env_cfg = dict(dist_cfg=dict(timeout=2))")
    words = ['tools/train.py', config, '--work-dir', tmp_path / 'work', '--launcher', 'mpi', '--cfg-options']
    result = run_tool(*words, *small_data(shapes), check=False, **variables)
    assert_refused(result, 'rank 0 of 4 did not find the others at 127.0.0.1:')


def test_dist_train_finds_its_port_taken():
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        result = subprocess.run(
            ['bash', 'tools/dist_train.sh', 'CONFIG', '2'], cwd=ROOT, env={**os.environ, 'PORT': str(port)},
            capture_output=True, text=True)
    assert_refused(result, f'the processes meet at port {port}, which another program', f'PORT={port + 1} bash')
