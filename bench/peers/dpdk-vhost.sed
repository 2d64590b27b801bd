# For DPDK 22.11's examples/vhost/main.c: runs without a VMDQ network card.  The sample derives the number of guests
# from the card's VMDQ pools and asks it for offloads; here its uplink is net_null, which has neither.  Nothing on a
# packet's way between guests is changed.
/if (dev_info.max_vmdq_pools == 0) {/i\
	dev_info.max_vmdq_pools = 2;\
	dev_info.vmdq_queue_num = 2;\
	dev_info.max_rx_queues = 2;
/\/\* Configure ethernet device. \*\//i\
	memset(&port_conf, 0, sizeof(port_conf));
# The main thread waits for its workers without spinning: it would take half of the core that the load comes from.
s/^\t\trte_eal_wait_lcore(lcore_id);/\t\twhile (rte_eal_get_lcore_state(lcore_id) == RUNNING)\n\t\t\tusleep(10000);/
