"""Everything worth knowing about a GPU in nine minutes, on a card that is rented by the hour.

    stages.py      the list of stages, in order: what is compiled, checked, timed and searched
    step_table.py  the 1.3B steps among them, of every mixer and of the peers, and their table
    tasks.py       what a task does, in a process of its own   (worker.py: that process)
    schedule.py    starts the tasks, keeps the deadline, saves what comes
    record.py      the file of results, for one commit and one card
    summary.py     the tables of it

Data flows that way: the stages name tasks, a task returns figures, the schedule puts them into the
record, the summary reads it.
"""
