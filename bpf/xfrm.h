/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Shared XFRM interfaces (`type xfrm external`): only functions of their own module know a packet's
 * interface id, so programs that need the module stand beside ours on such an interface, and what
 * they have to say to each other is in skb->cb, which is nobody else's between two TC programs.
 */
#ifndef LASTHOP_XFRM_H
#define LASTHOP_XFRM_H

enum xfrm_cb {
	XFRM_CB_MARK, /* XFRM_MARK: the next one holds */
	XFRM_CB_ID,
};

#define XFRM_MARK 0x6c687866

#endif
